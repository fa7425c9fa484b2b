//! Addresses of this machine's network interfaces.

use std::io;
use std::net::{IpAddr, SocketAddrV6};

use nix::ifaddrs::getifaddrs;

/// The first address of each of the named interfaces, of IPv4 where `v4`, else of IPv6 (not one of the link alone). An error names
/// the interface that has none.
pub fn addresses(names: &[String], v4: bool) -> io::Result<Vec<IpAddr>> {
    let all: Vec<_> = getifaddrs()?.collect();
    let of = |name: &String| {
        let address = all.iter().filter(|interface| interface.interface_name == *name).find_map(|interface| {
            let storage = interface.address.as_ref()?;
            let v4_address = storage.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
            let v6_address = storage.as_sockaddr_in6().map(|address| SocketAddrV6::from(*address));
            let v6_address = v6_address.filter(|address| !address.ip().is_unicast_link_local());
            if v4 { v4_address } else { v6_address.map(|address| IpAddr::from(*address.ip())) }
        });
        let kind = if v4 { "IPv4" } else { "IPv6" };
        let missing =
            || io::Error::new(io::ErrorKind::AddrNotAvailable, format!("interface {name} has no {kind} address"));
        address.ok_or_else(missing)
    };
    names.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_its_address_and_others_are_named() {
        let names = ["lo".to_owned()];
        assert_eq!(addresses(&names, true).unwrap(), [IpAddr::from([127, 0, 0, 1])]);
        let missing = addresses(&["lo".to_owned(), "no-such0".to_owned()], true).unwrap_err();
        assert!(missing.to_string().contains("no-such0"), "{missing}");
    }
}
