"""What is trained: the autoencoder, the posterior-mean predictor, the flow."""
