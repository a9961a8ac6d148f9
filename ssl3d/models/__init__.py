"""Networks: layers, encoders, heads, and the exported encoder a user loads in two lines.

    from ssl3d.models import load_encoder
    module, variables = load_encoder("runs/rpl3d_phantom")

and `module.apply(variables, x).levels` are the features of x [B, *S, C].
"""

from ssl3d.models.export import load_encoder

__all__ = ["load_encoder"]
