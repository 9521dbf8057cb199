"""What a model is trained towards: the loss of a rank's rows, and what its outputs mean to whoever asks for them."""
