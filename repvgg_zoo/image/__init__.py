"""From a picture to the names of what it shows, as the publisher of each checkpoint evaluates it."""
