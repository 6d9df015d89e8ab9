"""Images: loading, the publishers' preprocessing, and predictions with class names."""
