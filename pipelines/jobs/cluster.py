"""The Ray cluster that RAY_ADDRESS names: whether it answers, and what to do where it does not."""

import os
import socket

from infra.errors import UserError

CONNECT_SECONDS = 10.0


def check_answers(address: str) -> None:
    """Try the port of an address HOST:PORT, at which Ray itself would knock for minutes.

    Addresses of another form, such as ``auto``, are left to Ray.

    Raises:
        ConnectionError: nobody listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nobody answers there ({error})") from error


def unreachable(error: Exception) -> UserError:
    """Say what to do where Ray does not start, or a cluster does not answer or lets nobody in."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return UserError(f"cannot start Ray on this machine: {error}")
    return UserError(
        f"cannot reach the Ray cluster at RAY_ADDRESS={address}: {error}; check that it is up. If "
        "its head was started where ~/.ray/auth_token exists, it asks for that token: set "
        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a copy of the file or RAY_AUTH_TOKEN to "
        "what it holds"
    )


def without_cpus() -> UserError:
    """Say what to do where no machine of the cluster offers CPUs yet."""
    return UserError(
        f"the Ray cluster at RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')} has no CPUs yet, and "
        "every worker of a job needs one; start its machines (`ray start --address=HOST:PORT` on "
        "each, without --num-cpus=0) and run the same command again"
    )
