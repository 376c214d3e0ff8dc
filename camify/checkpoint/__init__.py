"""What a CAM-ready network is stored as: the folder, its architecture as data, the certificate, the card, the Hub.

Files for people without camify (ONNX, pt2) are in ``exporters``; reading other people's weights is in ``sources``.
A new field of the manifest goes to ``manifest.py``, with its kind in ``folder.py`` and a stored example in the tests.
"""
