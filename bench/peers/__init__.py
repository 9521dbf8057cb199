"""What a good engineer would write without rtrain."""
