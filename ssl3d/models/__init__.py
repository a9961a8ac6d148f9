"""Networks: layers, encoders, decoders, heads, and the exported encoder, loaded in two lines:

    from ssl3d.models import load_encoder
    module, variables = load_encoder("runs/rpl3d_phantom")

`module.apply(variables, x).levels` are the features of x [B, *S, C].
"""

from ssl3d.models.export import load_encoder

__all__ = ["load_encoder"]
