"""Drives a Redfish service with OpenStack's sushy as Ironic's redfish driver does.

Usage: client.py URL USER PASSWORD. Prints OK at the end.
"""
import sys
import time

import sushy

url, user, password = sys.argv[1:]


def until(system, state):
    for _ in range(100):
        system.refresh(force=True)
        if system.power_state == state:
            return
        time.sleep(0.05)
    raise SystemExit("power %s, want %s" % (system.power_state, state))


def boot(system, device, enabled):
    system.set_system_boot_options(device, enabled=enabled)
    system.refresh(force=True)
    have = system.boot["target"], system.boot["enabled"]
    assert have == (device, enabled), have


for auth in (sushy.auth.SessionOrBasicAuth, sushy.auth.SessionAuth, sushy.auth.BasicAuth):
    with auth(username=user, password=password) as a:
        root = sushy.Sushy(url, auth=a)
        found = root.get_system_collection().get_members()
        assert len(found) == 1, found
        system = root.get_system(found[0].path)
        assert system.uuid and system.manufacturer and system.memory_summary.size_gib
        until(system, sushy.SYSTEM_POWER_STATE_OFF)
        boot(system, sushy.BOOT_SOURCE_TARGET_PXE, sushy.BOOT_SOURCE_ENABLED_ONCE)
        system.reset_system(sushy.RESET_ON)
        until(system, sushy.SYSTEM_POWER_STATE_ON)
        assert system.boot["enabled"] == sushy.BOOT_SOURCE_ENABLED_DISABLED
        boot(system, sushy.BOOT_SOURCE_TARGET_HDD, sushy.BOOT_SOURCE_ENABLED_CONTINUOUS)
        for reset in (sushy.RESET_FORCE_RESTART, sushy.RESET_GRACEFUL_RESTART):
            system.reset_system(reset)
            until(system, sushy.SYSTEM_POWER_STATE_ON)
        system.reset_system(sushy.RESET_GRACEFUL_SHUTDOWN)
        until(system, sushy.SYSTEM_POWER_STATE_OFF)
        assert len(system.ethernet_interfaces.summary) == 1
        assert root.get_chassis_collection().get_members()
        for owner in (system, root.get_manager_collection().get_members()[0]):
            cd = owner.virtual_media.get_members()[0]
            cd.insert_media("http://192.0.2.1/boot.iso")
            cd.refresh(force=True)
            assert cd.inserted and cd.image == "http://192.0.2.1/boot.iso"
            cd.eject_media()
            cd.refresh(force=True)
            assert not cd.inserted
        try:
            system.reset_system(sushy.RESET_NMI)
            raise SystemExit("an NMI was accepted")
        except sushy.exceptions.InvalidParameterValueError:
            pass
print("OK")
