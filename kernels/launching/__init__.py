"""How kernels are launched, checked and registered."""
