"""The methods BoltzFormer is compared with, each an adapter around the real package."""
