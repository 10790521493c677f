"""resrepro reproduces the degradation study of the ResNet paper (He et al. 2015, section 4.2)."""

__version__ = "0.1.0"
