"""`napari-muvit demo`: the main job on a real image, from a picture to a scored prediction."""
