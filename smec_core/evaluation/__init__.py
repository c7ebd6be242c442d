"""How good a vector is: metrics, dev scores, significance, drift and the gate."""
