"""Scoring inside engines that span machines: Ray Data, Spark and Dask.

    from aioserving.engines.model import pin
    from aioserving.engines.ray import score_dataset

    model = pin("10.0.0.1:8500,10.0.0.2:8500", "digits", inputs={"images": "pixels"})
    scored = score_dataset(dataset, model, actors=4)

    model    a model with its version pinned, which can be sent to workers; clients are opened there
    ray      `ray.data.Dataset`, with one client in each actor (extra ``ray``)
    spark    `pyspark.sql.DataFrame`, with one client in each executor's Python process (extra ``spark``)
    dask     `dask.dataframe.DataFrame`, with one client in each worker process (extra ``dask``)

Reading, splitting, scheduling and retrying are the engine's. Nothing here is imported by `aioserving` itself.
"""
