"""Before and after in a browser: one curtain over two images, in a page of its own or served with deep zoom.

`openseadragon.min.js` is OpenSeadragon 6.1.1 as its project built it, under the licence that lies beside it (BSD).
"""
