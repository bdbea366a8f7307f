"""Does a policy give no more than a study needs? Reads the IAM policies of this folder."""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.structure import Fault

PREFIX_ACTIONS = {
    "s3:ListBucket",
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
}
"""What a study does in its bucket."""
HEAD_ACTIONS = {
    "ec2:DescribeInstances",
    "ec2:DescribeImages",
    "ec2:RunInstances",
    "ec2:CreateTags",
    "ec2:TerminateInstances",
    "iam:PassRole",
}
"""What Ray's autoscaler does on a head to keep its workers."""
_BOUND = {"ec2:TerminateInstances", "iam:PassRole", "s3:ListBucket"}
_ACTIONS = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/example-policies-s3.html"


def policy_faults(policy: Mapping[str, Any], needed: set[str]) -> Iterator[Fault]:
    """Actions that are not needed, that are missing, or that reach too far.

    Args:
        policy: an IAM policy document.
        needed: the actions it must allow, and the only ones.
    """
    allowed: set[str] = set()
    for number, statement in enumerate(policy.get("Statement", [])):
        if statement.get("Effect") != "Allow":
            continue
        place, actions = f"Statement[{number}]", set(statement.get("Action", []))
        allowed |= actions
        for action in sorted(actions - needed):
            yield Fault(f"{place}.Action", f"{action} is not needed", "take it out", _ACTIONS)
        if actions & _BOUND and "Condition" not in statement:
            names = ", ".join(sorted(actions & _BOUND))
            rule = f"{names} is bound by no condition"
            yield Fault(
                f"{place}.Condition", rule, "bind it to the prefix, tag or service", _ACTIONS
            )
        for resource in statement.get("Resource", []):
            if _reaches_far(resource, actions):
                rule = f"{resource} is more than one prefix, account or role"
                yield Fault(f"{place}.Resource", rule, "narrow it", _ACTIONS)
    for action in sorted(needed - allowed):
        yield Fault("Statement", f"{action} is not allowed", "a study needs it", _ACTIONS)


def _reaches_far(resource: str, actions: set[str]) -> bool:
    if resource == "*":  # EC2 describes all machines or none
        return not all(action.startswith("ec2:Describe") for action in actions)
    if resource.startswith("arn:aws:s3:::"):
        bucket, _, key = resource.removeprefix("arn:aws:s3:::").partition("/")
        whole = actions != {"s3:ListBucket"} and key in ("", "*")
        return "*" in bucket or whole
    return resource.startswith("arn:aws:iam") and resource.endswith("*")
