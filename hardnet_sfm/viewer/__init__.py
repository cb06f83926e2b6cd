"""The verb `view`: a model in the browser, with the photos behind its cameras and the patches behind its points."""
