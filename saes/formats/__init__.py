"""One file for each layout in which sparse autoencoders are published; `saes.load.load_sae` chooses among them."""
