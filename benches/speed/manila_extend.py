"""Extends shares with Manila's own LVM driver, one line of standard input after the other: SHARE GIB.

Answers each with the seconds that LVMShareDriver.extend_share took. The driver runs in this process as root, without the
daemon that it would hand its commands to, and without Manila's API, scheduler, database and message queue.
"""

import socket
import sys
import time
import warnings

warnings.filterwarnings("ignore")
# A lab node has no name, and Manila wants one.
socket.gethostname = lambda: "node"

from manila import privsep  # noqa: E402
from manila.common import config  # noqa: E402
from manila.share import configuration  # noqa: E402
from manila.share.drivers import lvm  # noqa: E402

config.CONF([], project="manila", default_config_files=[])
config.CONF.set_override("lvm_share_volume_group", sys.argv[1])
config.CONF.set_override("driver_handles_share_servers", False)
privsep.sys_admin_pctxt.set_client_mode(False)
driver = lvm.LVMShareDriver(configuration=configuration.Configuration(lvm.share_opts))

for line in sys.stdin:
    share, size = line.split()
    begin = time.perf_counter()
    driver.extend_share({"name": share}, int(size))
    print(time.perf_counter() - begin, flush=True)
