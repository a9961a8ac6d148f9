"""Networks: layers, encoders, heads, and the exported encoder a user loads in two lines.

module, variables = load_encoder("run")
levels = module.apply(variables, x).levels      # x: [B, *S, C]
"""
