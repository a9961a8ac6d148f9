"""Networks for PyTorch, MONAI, nnU-Net and the Hugging Face hub, in folders that stand alone.

    source         what is exported: the encoder of a run, or the network of a segmentation
    torch_folder   weights, network and reference for PyTorch; the other formats add to it
    nnunet  monai_bundle  hub

Scripts that run where torch is, without ssl3d: torch_network, nnunet_checkpoint (copied into the
folders) and convert_checkpoint (from nnU-Net and nnssl).
"""
