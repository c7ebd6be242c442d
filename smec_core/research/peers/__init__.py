"""The methods that SMEC is compared with, each trained on the same data and seen through one interface."""
