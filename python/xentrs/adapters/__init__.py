"""One file for each kind of array: how its memory is lent to the kernels, and how results become its kind again."""
