"""The functions of tensors as operators of torch, with gradients. Imported only after the caller has imported torch.

`define.py` makes operators; the other files have one for each function, named after what they take.
"""
