"""Runs the real ironic-python-agent of this Python environment on a machine
that has nothing to lose: one disk, which is a file in the working directory.

    run.py WORKDIR JSON

JSON: api_url, port, mac, disk_bytes, tls (bool), inspect_url ("" for none).

What speaks is IPA's own code: lookup, heartbeat, inspection, the command API,
its extensions, and its image download with the digest check. What would touch
the host is not there: the only hardware manager is the one below, which does not
inherit from IPA's generic one, and an audit hook refuses to start programs, to
write outside the working directory and to talk to anything but loopback.
"""

import json
import logging
import os
import sys
import threading

sys.dont_write_bytecode = True

from oslo_config import cfg
from oslo_log import log

from ironic_python_agent import agent
from ironic_python_agent import disk_utils
from ironic_python_agent import hardware
from ironic_python_agent import inspector  # noqa: F401, loaded before the guard
from ironic_python_agent import partition_utils
from ironic_python_agent import tls_utils
from ironic_python_agent.extensions import base
from ironic_python_agent.extensions import clean  # noqa: F401, loaded before the guard
from ironic_python_agent.extensions import deploy  # noqa: F401, loaded before the guard
from ironic_python_agent.extensions import flow  # noqa: F401, loaded before the guard
from ironic_python_agent.extensions import image
from ironic_python_agent.extensions import poll  # noqa: F401, loaded before the guard
from ironic_python_agent.extensions import rescue  # noqa: F401, loaded before the guard
from ironic_python_agent.extensions import service  # noqa: F401, loaded before the guard
from ironic_python_agent.extensions import standby
from ironic_python_agent.extensions import system  # noqa: F401, loaded before the guard

CONF = cfg.CONF
WORK = os.path.realpath(sys.argv[1])
WANT = json.loads(sys.argv[2])
DISK = os.path.join(WORK, 'disk')

PROGRAMS = {'subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn',
            'os.spawn', 'os.fork', 'os.forkpty', 'os.kill', 'os.killpg'}
# Events whose first argument is a path that would be changed.
CHANGES = {'os.remove', 'os.rename', 'os.rmdir', 'os.mkdir', 'os.chmod',
           'os.chown', 'os.truncate', 'os.link', 'os.symlink', 'os.utime',
           'os.setxattr', 'shutil.rmtree', 'shutil.move', 'shutil.copyfile'}
ADDRESSED = {'socket.connect', 'socket.bind', 'socket.sendto'}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def confined(path):
    if isinstance(path, int):
        return True
    real = os.path.realpath(os.fsdecode(path))
    return real == '/dev/null' or real == WORK or real.startswith(WORK + '/')


def guard(event, args):
    if event in PROGRAMS:
        raise PermissionError('confined: %s %r' % (event, args[:2]))
    if event == 'open' and args[2] & WRITES and not confined(args[0]):
        raise PermissionError('confined: write to %r' % (args[0],))
    if event in CHANGES and not all(
            confined(p) for p in args[:2] if isinstance(p, (str, bytes))):
        raise PermissionError('confined: %s %r' % (event, args[:2]))
    if event in ADDRESSED:
        where = args[-1]
        if not (isinstance(where, tuple) and where[0] == '127.0.0.1'):
            raise PermissionError('confined: %s %r' % (event, where))


class ConfinedManager(hardware.HardwareManager):
    """A machine of one NIC and one disk. Steps have the signatures of IPA's own."""

    HARDWARE_MANAGER_NAME = 'confined'
    HARDWARE_MANAGER_VERSION = '1.0'

    def evaluate_hardware_support(self):
        return hardware.HardwareSupport.SERVICE_PROVIDER

    def list_network_interfaces(self):
        return [hardware.NetworkInterface('eth0', WANT['mac'],
                                          ipv4_address='127.0.0.1')]

    def get_cpus(self):
        return hardware.CPU('virtual', '1000', 1, 'x86_64')

    def list_block_devices(self, include_partitions=False,
                           all_serial_and_wwn=False):
        return [hardware.BlockDevice('/dev/vda', 'file', WANT['disk_bytes'],
                                     False, serial='CONFINED-1')]

    def get_memory(self):
        return hardware.Memory(1 << 30, physical_mb=1024)

    def get_bmc_address(self):
        return None

    def get_bmc_v6address(self):
        return None

    def get_system_vendor_info(self):
        return hardware.SystemVendorInfo(
            'nothing', 'S-1', 'Slipway',
            hardware.SystemFirmware('none', '1', '01/01/2026'))

    def get_boot_info(self):
        return hardware.BootInfo('uefi', pxe_interface=WANT['mac'])

    def wait_for_disks(self):
        pass

    def full_sync(self):
        pass

    def get_os_install_device(self, permit_refresh=False):
        return DISK

    def generate_tls_certificate(self, ip_address):
        cert, key = os.path.join(WORK, 'crt'), os.path.join(WORK, 'key')
        text = tls_utils._generate_tls_certificate(cert, key, 'confined',
                                                   ip_address)
        return tls_utils.TlsCertificate(text, cert, key)

    def get_clean_steps(self, node, ports):
        return [{'step': 'erase_devices_metadata', 'priority': 99,
                 'interface': 'deploy', 'reboot_requested': False,
                 'abortable': True},
                {'step': 'erase_devices', 'priority': 0,
                 'interface': 'deploy', 'reboot_requested': False,
                 'abortable': True}]

    def get_deploy_steps(self, node, ports):
        return [{'step': 'write_image', 'priority': 0, 'interface': 'deploy',
                 'reboot_requested': False}]

    def erase_devices_metadata(self, node, ports):
        with open(DISK, 'r+b') as f:
            for at in (0, WANT['disk_bytes'] - (1 << 20)):
                f.seek(at)
                f.write(bytes(1 << 20))

    def write_image(self, node, ports, image_info, configdrive=None):
        ext = base.get_extension('standby')
        result = ext.prepare_image(image_info=image_info,
                                   configdrive=configdrive).wait()
        os.truncate(DISK, WANT['disk_bytes'])
        return result


def note(what):
    print('confined: ' + what, flush=True)


def shut_down(self, command):
    note(command)
    if command not in ('poweroff', 'reboot'):
        raise ValueError(command)
    # The answer to this command still has to go out.
    threading.Timer(1, os._exit, [0]).start()


def main():
    standby.StandbyExtension._run_shutdown_command = shut_down
    standby._validate_partitioning = lambda device: None
    disk_utils.get_disk_identifier = lambda device: '0x00000000'
    disk_utils.block_uuid = lambda device: None
    disk_utils.fix_gpt_partition = lambda device, node_uuid: None
    # Its own would take all links of this host down.
    agent.IronicPythonAgent._lockdown_system = lambda self: note('lockdown')
    partition_utils.create_config_drive_partition = (
        lambda node, device, drive: note('config drive of %d bytes for %s'
                                         % (len(drive), node)))
    image._efi_boot_setup = (
        lambda device, part=None, mode='bios': note('boot entry, ' + mode)
        or True)
    hardware._global_managers = [
        {'name': 'ConfinedManager', 'manager': ConfinedManager(),
         'support': hardware.HardwareSupport.SERVICE_PROVIDER}]

    log.register_options(CONF)
    CONF(args=[], default_config_files=[])
    for option, value in {
            'api_url': WANT['api_url'],
            'listen_host': '127.0.0.1', 'listen_port': WANT['port'],
            'advertise_host': '127.0.0.1', 'advertise_port': WANT['port'],
            'enable_auto_tls': WANT['tls'],
            'inspection_callback_url': WANT['inspect_url'] or None,
            'inspection_collectors': 'default' if WANT['inspect_url'] else None,
            'inspection_dhcp_wait_timeout': 0,
            'debug': False, 'use_stderr': True}.items():
        CONF.set_override(option, value)
    log.setup(CONF, 'ironic-python-agent')
    logging.getLogger('ironic_python_agent').setLevel(logging.INFO)
    if not os.path.exists(DISK):
        with open(DISK, 'wb') as f:
            f.truncate(WANT['disk_bytes'])
    agent.IronicPythonAgent.from_config(CONF).run()


sys.addaudithook(guard)
for denied in (lambda: os.system('true'), lambda: open('/dev/vda', 'r+b'),
               lambda: open('/tmp/confined', 'w')):
    try:
        denied()
    except PermissionError as e:
        if 'confined' not in str(e):
            raise
    else:
        sys.exit('the guard does not hold')
main()
