"""Extends and shrinks a share with OpenStack's libraries, unpatched: clients.py URL SHARE. The share has 3 GiB, and 4 in
the end.

Prints what each says to a size that it cannot have.
"""

import sys
import time

import openstack
from manilaclient import api_versions
from manilaclient.v2 import client

base, share_id = sys.argv[1:]
endpoint = f"{base}/v2/p"


def refused(name, call):
    try:
        call()
    except Exception as error:
        print(f"{name}: {error}")
    else:
        sys.exit(f"{name}: the size was taken")


def until_available(size, get):
    share = get(share_id)
    # A generous bound: a lab node may be slow.
    end = time.monotonic() + 120
    while share.status in ("extending", "shrinking") and time.monotonic() < end:
        time.sleep(0.1)
        share = get(share_id)
    assert (share.status, share.size) == ("available", size), share


manila = client.Client(
    api_version=api_versions.APIVersion("2.6"), input_auth_token="x", service_catalog_url=endpoint
)
share = manila.shares.get(share_id)
refused("python-manilaclient", lambda: manila.shares.extend(share, 1))
manila.shares.extend(share, 4)
until_available(4, manila.shares.get)
refused("python-manilaclient", lambda: manila.shares.shrink(share, 4))
manila.shares.shrink(share, 2)
until_available(2, manila.shares.get)

connection = openstack.connect(
    auth_type="none", endpoint=endpoint, load_yaml_config=False, load_envvars=False
)
refused("openstacksdk", lambda: connection.share.resize_share(share_id, 2147483648))
connection.share.resize_share(share_id, 5)
until_available(5, connection.share.get_share)
connection.share.resize_share(share_id, 4)
until_available(4, connection.share.get_share)
