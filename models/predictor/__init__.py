"""Posterior-mean predictors: SwinIR."""
