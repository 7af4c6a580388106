"""Multi-view training: the views of a scene see each other through adapters in a frozen backbone.

sets of frames and cameras → rays and adapters → feature maps → location loss and regulariser
"""
