"""Backbones: what each model of timm can do as an encoder of masked pretraining."""
