# Sourced in the guest: its RDMA devices. One soft-RoCE device cannot live in a network namespace of its own, so both
# ends of everything are in one.
#
#   loop: rxe0 over 10.99.0.1, which both ends use
#   pair: rxe1 over 10.99.0.1 and rxe2 over 10.99.0.2, the ends of a veth pair. What goes from one address to the other really
#         crosses it, so that it can be cut (network_cut) and disturbed (tc qdisc ... dev v1 root netem ...).

network_loop() {
  ip link show rd0 >/dev/null 2>&1 || ip link add rd0 type dummy
  ip link set rd0 mtu 4500 up
  ip address add 10.99.0.1/24 dev rd0
  rdma link add rxe0 type rxe netdev rd0
}

network_pair() {
  local side other
  ip link add v1 type veth peer name v2
  sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.all.accept_local=1
  for side in 1 2; do
    other=$((3 - side))
    ip link set v$side mtu 4500 up
    ip address add 10.99.0.$side/24 dev v$side
    sysctl -qw net.ipv4.conf.v$side.accept_local=1 net.ipv4.conf.v$side.rp_filter=0 \
      net.ipv4.conf.v$side.arp_ignore=1 net.ipv4.conf.v$side.arp_announce=2
    # What comes in is looked up as local; what goes from here to the other side leaves by the pair.
    ip rule add pref $side iif v$side lookup local
    ip route add 10.99.0.$other dev v$side src 10.99.0.$side table 10$side
    ip rule add pref 1$side from 10.99.0.$side to 10.99.0.$other lookup 10$side
  done
  ip rule add pref 100 lookup local
  ip rule del pref 0
  rdma link add rxe1 type rxe netdev v1
  rdma link add rxe2 type rxe netdev v2
}

# The pair's cable, pulled and put back. Not `ip link set down`: what a soft device sends through an interface that is down
# breaks its queues for good, those of its connection manager too.
network_cut() {
  tc qdisc replace dev v1 root netem loss 100%
  tc qdisc replace dev v2 root netem loss 100%
}

network_mend() {
  tc qdisc del dev v1 root
  tc qdisc del dev v2 root
}
