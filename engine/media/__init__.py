"""Pictures and videos in and out: images, MP4, PNG, latents files, exports.

Imports companions and below. Others use ``images.load_image``, ``video.Video`` and ``exports.export_video``.
"""
