"""Predict on several workers: IMAGE MODEL OUT.ome.zarr [SCHEDULER].

Without a scheduler's address, workers are started on this machine. On SLURM, start them with
dask-jobqueue and pass its address:

    from dask_jobqueue import SLURMCluster
    cluster = SLURMCluster(cores=8, memory="32GB", job_extra_directives=["--gres=gpu:1"])
    cluster.scale(jobs=4); print(cluster.scheduler_address)
"""

import sys

import napari_muvit as muvit


def main(image: str, model: str, output: str, scheduler: str = "local") -> None:
    for event in muvit.predict_to_zarr(image, model, output, cluster=scheduler):
        print(event)


if __name__ == "__main__":
    if len(sys.argv) not in {4, 5}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
