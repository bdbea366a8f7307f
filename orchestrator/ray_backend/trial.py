"""A trial as Ray Tune sees it: a feather-weight function that relays what a gang reports."""

from typing import Any

from orchestrator import environment

Json = dict[str, Any]


def keep_keys_from_trials() -> None:
    """Tune would hand AWS's keys to a trial's process, by way of a file that Ray logs in clear.

    A trial reads and writes no store; what runs on the driver's node has its environment anyway.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(environment.AWS_KEYS)


def relay(config: Json) -> None:
    """Tune's trainable: read the trial's lease and pass each epoch on to Tune.

    It holds nothing: the lease was submitted by the driver and stays in the mailbox, so a second
    process of the same trial reads the same reports again. Tune's answer to a report is that
    `tune.report` returns (go on) or does not (the scheduler stopped the trial).
    """
    import ray
    from ray import tune

    mailbox, name, number = config["mailbox"], config["trial"], 0
    ray.get(mailbox.reopen.remote(name))
    while True:
        kind, value = ray.get(mailbox.read.remote(name, number))
        if kind == "report":
            tune.report({"report": value, "number": number})
            mailbox.proceed.remote(name, number)
            number += 1
        elif kind == "outcome":
            if value["kind"] == "stopped":  # nobody told Tune: the lease was taken for orphaned
                ray.get(mailbox.reopen.remote(name))
                continue
            tune.report({"outcome": value, "number": number})
            ray.get(mailbox.acknowledge.remote(name))
            return
