package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// networkData is the part of OpenStack's network_data.json that is used:
// physical links with IPv4 by DHCP or by hand.
type networkData struct {
	Links []struct {
		ID  string `json:"id"`
		MAC string `json:"ethernet_mac_address"`
		MTU int    `json:"mtu"`
	} `json:"links"`
	Networks []network `json:"networks"`
	Services []struct {
		Type    string `json:"type"`
		Address string `json:"address"`
	} `json:"services"`
}

type network struct {
	Type    string `json:"type"` // ipv4_dhcp or ipv4; others are left to the DHCP default
	Link    string `json:"link"`
	Address string `json:"ip_address"`
	Netmask string `json:"netmask"`
	Gateway string `json:"gateway"`
	Routes  []struct {
		Network string `json:"network"`
		Netmask string `json:"netmask"`
		Gateway string `json:"gateway"`
	} `json:"routes"`
}

// setNetwork writes one systemd.network file a link.
func setNetwork(root string, data networkData) error {
	for i, link := range data.Links {
		mac, err := net.ParseMAC(link.MAC)
		if err != nil {
			continue // a bond or a VLAN, which this image does not do
		}
		var b strings.Builder
		fmt.Fprintf(&b, "[Match]\nMACAddress=%s\nType=ether\n\n", mac)
		if link.MTU >= 576 {
			fmt.Fprintf(&b, "[Link]\nMTUBytes=%d\n\n", link.MTU)
		}
		b.WriteString("[Network]\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n")
		known, err := writeNetworks(&b, link.ID, data.Networks)
		if err != nil {
			return fmt.Errorf("network_data.json: link %s: %w", link.ID, err)
		}
		if !known {
			continue
		}
		path := filepath.Join(root, "etc/systemd/network", fmt.Sprintf("10-config-drive-%d.network", i))
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			return err
		}
	}
	return setResolver(root, data)
}

func writeNetworks(b *strings.Builder, link string, networks []network) (known bool, err error) {
	var routes strings.Builder
	for _, n := range networks {
		if n.Link != link {
			continue
		}
		switch n.Type {
		case "ipv4_dhcp":
			b.WriteString("DHCP=ipv4\n")
			routes.WriteString("\n[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\nUseTimezone=no\n")
		case "ipv4":
			prefix, err := prefixOf(n.Address, n.Netmask)
			if err != nil {
				return false, err
			}
			fmt.Fprintf(b, "Address=%s\n", prefix)
			if gateway, err := netip.ParseAddr(n.Gateway); err == nil {
				fmt.Fprintf(b, "Gateway=%s\n", gateway)
			}
			for _, r := range n.Routes {
				to, err := prefixOf(r.Network, r.Netmask)
				if err != nil {
					return false, err
				}
				gateway, err := netip.ParseAddr(r.Gateway)
				if err != nil {
					return false, fmt.Errorf("gateway %q: %w", r.Gateway, err)
				}
				fmt.Fprintf(&routes, "\n[Route]\nDestination=%s\nGateway=%s\n", to.Masked(), gateway)
			}
		default:
			continue
		}
		known = true
	}
	b.WriteString(routes.String())
	return known, nil
}

// prefixOf reads an address that carries its length, or has a netmask beside it.
func prefixOf(address, netmask string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(address); err == nil {
		return p, nil
	}
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("address %q: %w", address, err)
	}
	mask, err := netip.ParseAddr(netmask)
	if err != nil || !mask.Is4() || !addr.Is4() {
		return netip.Prefix{}, fmt.Errorf("netmask %q of %s is not an IPv4 netmask", netmask, address)
	}
	ones, bits := net.IPMask(mask.AsSlice()).Size()
	if bits != 32 {
		return netip.Prefix{}, fmt.Errorf("netmask %q of %s has holes", netmask, address)
	}
	return netip.PrefixFrom(addr, ones), nil
}

func setResolver(root string, data networkData) error {
	var b strings.Builder
	for _, s := range data.Services {
		if addr, err := netip.ParseAddr(s.Address); err == nil && s.Type == "dns" {
			fmt.Fprintf(&b, "nameserver %s\n", addr)
		}
	}
	if b.Len() == 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(root, "etc/resolv.conf"), []byte(b.String()), 0o644)
}
