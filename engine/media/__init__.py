"""Pictures and videos in and out: images, MP4, PNG, latents files, exports."""
