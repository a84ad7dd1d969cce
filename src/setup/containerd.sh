#!/bin/sh
# containerd reads these files at every pull: run this as root on each node, nothing has to be restarted.
# nerdctl looks there by itself, ctr only when told: ctr images pull --hosts-dir /etc/containerd/certs.d IMAGE
# Where the cache asks for a login, containerd sends a mirror only what hosts.toml says, in a table after its [host."…"]:
#   [host."@server@/…".header] with Authorization = ["Basic …"], base64 of NAME:SECRET (docs/how-to/logins.md).
# The kubelet's credential provider is asked only for images that are named by @host@.
# What does not answer within dial_timeout fails (containerd 2.1 and later; before that, after 30 s).
# Where the mirror fails, containerd asks the registry itself without a word. A `server` that is the mirror stops that.
set -eu
certs_d="${CERTS_D:-/etc/containerd/certs.d}"

# Writes hosts.toml of a registry. What says something else and is there already is kept as hosts.toml.1, .2 …
write() {
  file="$certs_d/$1/hosts.toml"
  mkdir -p "$certs_d/$1"
  cat > "$file.new"
  if [ -e "$file" ] && ! cmp -s "$file" "$file.new"; then
    n=1
    while [ -e "$file.$n" ]; do n=$((n + 1)); done
    cp -p "$file" "$file.$n"
    echo "kept $file.$n, which was $file"
  fi
  mv "$file.new" "$file"
  echo "wrote $file"
}
@each@

write "@registry@" <<'END'
# server = "@server@/@upstream@"
[host."@server@/@upstream@"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "5s"
END
@/each@
