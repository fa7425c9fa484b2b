# Sourced: where cargo has put the programs that run in the guest. The same packages and features as for the unit tests, so that
# nothing is compiled twice.

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${HOME:-/root}/.cache/burstfs/target}
built=$(cargo test --release --workspace --locked --exclude burstfs-tests --no-run --message-format=json) || exit 1
built+=$(cargo test --release --locked -p burstfs-tests --no-run --test rdma --message-format=json) || exit 1

# executable KIND FOLDER NAME: the test or the example NAME of the package in FOLDER.
executable() {
  local found
  found=$(jq -r --arg kind "$1" --arg folder "/$2/Cargo.toml" --arg name "$3" '
    select(.executable and .target.name == $name and (.target.kind | index($kind)) and (.manifest_path | endswith($folder)))
    | .executable' <<<"$built" | head -n 1)
  [ -x "$found" ] || { echo "rdma: the $1 $3 of $2 was not built" >&2; return 1; }
  echo "$found"
}
