"""A small trained model of the Phi-3-Vision architecture, and pictures to ask it about."""
