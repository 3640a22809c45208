"""Cinder's LVM driver and os-brick in one process, without services: what `npm run bench -- cinder` compares lunpath with.

Usage: cinder_worker.py CONFIG ADDRESS   (ADDRESS: the initiator's)

Standard input takes a line of JSON for each step, {"step": NAME, "volumes": [UUID, ...]}, which is done for all these
volumes at once, in green threads as in Cinder's own services. The answer is a line too: {"ms": ...} or {"error": ...}. An
empty request is answered when all is ready.
"""
import eventlet

eventlet.monkey_patch()
# The module that was there before the patch keeps a list of threads of its own, in which green threads are missing: on
# Python 3.11 each look-up of the current thread would fail. Cinder's services do the same (cinder/cmd/volume.py).
import __original_module_threading as original_threading  # noqa: E402
import threading  # noqa: E402

original_threading.current_thread.__globals__["_active"] = threading._active

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402

import os_brick  # noqa: E402
import os_brick.privileged  # noqa: E402
from oslo_config import cfg  # noqa: E402

import cinder.privsep  # noqa: E402
from cinder.common import config  # noqa: E402, F401  (registers Cinder's options)
from cinder.volume import configuration  # noqa: E402
from cinder.volume.drivers import lvm  # noqa: E402
from os_brick.initiator import connector  # noqa: E402

GIBIBYTE_VOLUME = 1


class Volume(dict):
    """What the driver takes for a row of Cinder's database: a dictionary whose keys are attributes too."""

    __getattr__ = dict.__getitem__

    def __init__(self, volume_id):
        super().__init__(
            id=volume_id,
            name=f"volume-{volume_id}",
            size=GIBIBYTE_VOLUME,
            host="bench@lvm",
            provider_location=None,
            provider_auth=None,
            multiattach=False,
            volume_attachment=[],
        )


class Database:
    """The one query that the target drivers send to Cinder's database."""

    def __init__(self, volumes):
        self._volumes = volumes

    def volume_get(self, _context, volume_id):
        return self._volumes[volume_id]


class Node:
    """A storage node and the host that uses its volumes, as Cinder's volume manager and Nova call them."""

    def __init__(self, address):
        self._volumes = {}
        self._connections = {}
        self._driver = lvm.LVMVolumeDriver(
            configuration=configuration.Configuration(lvm.volume_opts, config_group="lvm"),
            host="bench@lvm",
        )
        self._driver.target_driver.db = Database(self._volumes)
        self._driver.do_setup(None)
        self._driver.check_for_setup_error()
        self._properties = connector.get_connector_properties(None, address, multipath=False, enforce_multipath=False)
        self._connector = connector.InitiatorConnector.factory("ISCSI", None)

    def create(self, volume_id):
        volume = self._volumes[volume_id] = Volume(volume_id)
        self._driver.create_volume(volume)

    def export(self, volume_id):
        volume = self._volumes[volume_id]
        self._driver.validate_connector(self._properties)
        volume.update(self._driver.create_export(None, volume, self._properties))
        self._connections[volume_id] = self._driver.initialize_connection(volume, self._properties)

    def connect(self, volume_id):
        connection = self._connections[volume_id]
        connection["device"] = self._connector.connect_volume(connection["data"])

    def disconnect(self, volume_id):
        connection = self._connections[volume_id]
        self._connector.disconnect_volume(connection["data"], connection["device"])

    def unexport(self, volume_id):
        volume = self._volumes[volume_id]
        self._driver.terminate_connection(volume, self._properties)
        self._driver.remove_export(None, volume)
        del self._connections[volume_id]

    def delete(self, volume_id):
        self._driver.delete_volume(self._volumes[volume_id])
        del self._volumes[volume_id]


def set_up(config_file):
    cfg.CONF(["--config-file", config_file], project="cinder")
    os_brick.setup(cfg.CONF)
    # What needs root runs in this process, which is root, and not in a daemon of privsep's.
    for context in (cinder.privsep.sys_admin_pctxt, os_brick.privileged.default):
        context.set_client_mode(False)


def run(step, volume_ids):
    began = time.monotonic()
    threads = [eventlet.spawn(step, volume_id) for volume_id in volume_ids]
    for thread in threads:
        thread.wait()
    return (time.monotonic() - began) * 1000


def main(config_file, address):
    set_up(config_file)
    node = Node(address)
    steps = {name: getattr(node, name) for name in ("create", "export", "connect", "disconnect", "unexport", "delete")}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ms": run(steps[request["step"]], request["volumes"])} if request else {}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
