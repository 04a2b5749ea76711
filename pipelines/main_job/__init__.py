"""Parts of `bench_main_job.py`: scenes, segmentation, points, images, and the figure."""
