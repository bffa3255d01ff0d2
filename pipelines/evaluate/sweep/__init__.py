"""The perception-distortion plane of a model: the paper's Figure 8."""
