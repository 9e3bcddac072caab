"""Many images by many workers: what is to be done, who does it, and what became of it.

::

    manifest     files, folders, globs and tables  ->  jobs, each with a store of its own
    cluster      workers on this machine, its GPUs, a running scheduler, SLURM
    worker       what is done for one image at a worker; the model is loaded once in each
    staging      copies on a local disk, the next one made while one is read
    schedule     an image to each worker, the largest first; what is lost or may pass is done again
    ledger       what happened, line by line, and a table of what became of each image
"""
