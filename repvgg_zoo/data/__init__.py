"""Your own images: where they are, which class each is of, and what a network says about them."""
