"""The command `view` shows a model in the browser, with the photos of its cameras and the patches of its points."""
