"""Learned local features as a working tool for structure from motion and image retrieval.

    >>> import hardnet_sfm
    >>> model = hardnet_sfm.reconstruct("images/")  # doctest: +SKIP

Each stage is a function of files to files: `extract`, `pair`, `match`, `map_photos`; `reconstruct` chains them, and
`write_report` draws a page of what they made.
`vocabulary` and `index` make photos searchable; `index_photos` chains them, and `Index` searches.
"""

import lazy_loader

# __init__.pyi lists what is exported. A name is imported when it is first asked for: torch and pycolmap take seconds,
# and `hardnet-sfm --help` needs neither.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
