# Serves a proxy in a Linux guest by gost and systemd, as root. Before it stand: mode (serve, undo), dry,
# had and rule_was (undo: a proxy, and the firewall's rule, were there before), address, port, subnet, wanted (SHA-256 of the program to use, or
# empty for the one on PATH), upload (where that was put), config (base64, or empty).
# Answers one line of JSON: {"state": ...} with what a person is told in serve-proxy.ts.
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin:/usr/local/sbin:/usr/local/bin"
unit=vbox-to-hyperv-proxy.service
file=/etc/systemd/system/$unit
etc=/etc/vbox-to-hyperv
own=/usr/local/lib/vbox-to-hyperv/gost
saved=$etc/proxy.before
# address, port and subnet of the rule that this script has added
opened=$etc/proxy.rule
place="$address $port $subnet"

text() { printf '%s' "$1" | tr -d '[:cntrl:]' | sed 's/\\/\\\\/g; s/"/\\"/g'; }
answer() {
  printf '{"state":"%s","detail":"%s","version":"%s","sha256":"%s","program":"%s","served":%s,"changed":%s,"firewall":"%s","ruleWas":%s}\n' \
    "$1" "$(text "$2")" "$(text "$version")" "$sha" "$(text "$program")" "$served" "$changed" "$firewall" "$rule_there"
  [ -z "$upload" ] || rm -f "$upload"
  exit 0
}
hash() { sha256sum "$1" | cut -d ' ' -f 1; }
# a firewall that nobody turned on drops nothing, and gost itself takes the host's subnet alone
find_firewall() {
  if command -v ufw > /dev/null && ufw status 2> /dev/null | grep -q '^Status: active'; then echo ufw
  elif command -v firewall-cmd > /dev/null && firewall-cmd --state > /dev/null 2>&1; then echo firewalld
  else echo none
  fi
}
rich() {
  printf 'rule family="ipv4" source address="%s" destination address="%s" port port="%s" protocol="tcp" accept' \
    "$subnet" "$address" "$port"
}
# what is there is asked for first, as neither says by its exit code whether it changed anything
allowed() {
  case $firewall in
    # which it shows without the length of a single address
    ufw) ufw show added 2> /dev/null | grep -q "from ${subnet%/32} to $address port $port " ;;
    firewalld) firewall-cmd --permanent --query-rich-rule="$(rich)" > /dev/null 2>&1 ;;
    *) return 1 ;;
  esac
}
allow() {
  case $firewall in
    ufw) ufw allow proto tcp from "$subnet" to "$address" port "$port" comment vbox-to-hyperv ;;
    firewalld) firewall-cmd --permanent --add-rich-rule="$(rich)" && firewall-cmd --add-rich-rule="$(rich)" ;;
  esac > /dev/null
}
forbid() {
  case $firewall in
    ufw) ufw delete allow proto tcp from "$subnet" to "$address" port "$port" ;;
    firewalld) firewall-cmd --permanent --remove-rich-rule="$(rich)"; firewall-cmd --remove-rich-rule="$(rich)" ;;
  esac > /dev/null 2>&1
}
# One of these for the place that a file keeps, in a subshell.
kept() {
  [ -f "$2" ] || return 0
  read -r address port subnet < "$2"
  "$1"
}
# Leaves open what this file keeps, and nothing else that this script has opened.
open_only() {
  if [ -f "$1" ] && [ -f "$opened" ] && cmp -s "$1" "$opened"; then return; fi
  (kept forbid "$opened")
  rm -f "$opened"
  [ ! -f "$1" ] || { (kept allow "$1") && cp -p "$1" "$opened"; }
}
# What was served before, or with `remove` nothing.
put_back() {
  if [ -d "$saved" ]; then
    open_only "$saved/rule"
    cp -p "$saved/gost.json" "$etc/gost.json"
    cp -p "$saved/unit" "$file"
    if [ -f "$saved/gost" ]; then cp -p "$saved/gost" "$own.new" && mv -f "$own.new" "$own"; fi
    rm -rf "$saved"
    systemctl daemon-reload
    systemctl restart "$unit"
  elif [ "$1" = remove ]; then
    open_only none
    systemctl disable --now "$unit" > /dev/null 2>&1
    rm -f "$file" "$etc/gost.json" "$etc/gost.json.new" "$own" "$own.new"
    rmdir "$etc" "${own%/*}" 2> /dev/null
    systemctl daemon-reload
  fi
}

version='' sha='' program='' served=false changed=false firewall=none rule_there=false
[ ! -f "$file" ] || served=true
[ -d /run/systemd/system ] || answer no-systemd
firewall=$(find_firewall)
! allowed || rule_there=true

if [ "$mode" = undo ]; then
  if $served && { [ "$had" -eq 0 ] || [ -d "$saved" ]; }; then
    changed=true
    if [ "$dry" -eq 0 ]; then
      [ "$rule_was" -eq 1 ] || ! allowed || forbid
      [ "$had" -eq 1 ] || rm -rf "$saved"
      put_back remove
    fi
  fi
  answer ok
fi

if [ -z "$wanted" ]; then
  program=$(command -v gost) || answer no-gost
elif [ -f "$own" ] && [ "$(hash "$own")" = "$wanted" ]; then program=$own
elif [ -n "$upload" ]; then program=$upload
else answer upload
fi
sha=$(hash "$program")
[ -z "$wanted" ] || [ "$sha" = "$wanted" ] || answer broken-upload
[ "$program" != "$upload" ] || chmod 700 "$program"
version=$("$program" -V 2>&1 < /dev/null | head -n 1)
case $version in
  'gost 3.'* | 'gost v3.'*) ;;
  *) answer wrong-version ;;
esac
if command -v ip > /dev/null; then
  ip -o -4 address | grep -q " $address/" || answer no-address
fi
if ! systemctl is-active --quiet "$unit" && command -v ss > /dev/null; then
  holder=$(ss -Hltnp "sport = :$port" | grep -E "($address|0\.0\.0\.0|\*|\[::\]):$port " | head -n 1)
  [ -z "$holder" ] || answer taken "$(printf '%s' "$holder" | sed -n 's/.*users:(("\([^"]*\)".*/\1/p')"
fi

run=$program
[ -z "$wanted" ] || run=$own
# the configuration may have a password: it stays root's, and systemd hands it to a user without rights
# (LoadCredential, systemd 247); an older systemd has root itself without capabilities
release=$(systemctl --version 2> /dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
if [ "${release:-0}" -ge 247 ]; then
  who="DynamicUser=yes
LoadCredential=gost.json:$etc/gost.json
ExecStart=$run -C \${CREDENTIALS_DIRECTORY}/gost.json"
else
  who="ExecStart=$run -C $etc/gost.json"
fi
text_of_unit="[Unit]
Description=Proxy into this guest's network, for its Hyper-V host alone
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
$who
Restart=always
RestartSec=3
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target"

same=true
[ -f "$etc/gost.json" ] && [ "$(base64 < "$etc/gost.json" | tr -d '\n')" = "$config" ] || same=false
[ -f "$file" ] && [ "$(cat "$file")" = "$text_of_unit" ] || same=false
[ "$program" != "$upload" ] || same=false
open=true
[ "$firewall" = none ] || $rule_there || open=false
if $same && $open && systemctl is-enabled --quiet "$unit" && systemctl is-active --quiet "$unit"; then
  program=$run
  answer ok
fi
changed=true
if [ "$dry" -eq 1 ]; then program=$run; answer ok; fi

fail() {
  if ! $served; then put_back remove
  elif ! $same; then put_back keep
  fi
  answer failed "$1"
}
umask 077
mkdir -p "$etc"
$served || rm -rf "$saved"
if ! $same && $served; then
  rm -rf "$saved"
  mkdir "$saved"
  cp -p "$etc/gost.json" "$saved/gost.json"
  cp -p "$file" "$saved/unit"
  [ ! -f "$opened" ] || cp -p "$opened" "$saved/rule"
  [ ! -f "$own" ] || cp -p "$own" "$saved/gost"
fi
if [ "$program" = "$upload" ]; then
  (umask 022 && mkdir -p "${own%/*}") || fail 'writing the program'
  # one that runs cannot be written to, and can be replaced
  cp "$upload" "$own.new" && chmod 755 "$own.new" && mv -f "$own.new" "$own" || fail 'writing the program'
  program=$own
fi
printf '%s' "$config" | base64 -d > "$etc/gost.json.new" && mv -f "$etc/gost.json.new" "$etc/gost.json" ||
  fail 'writing its configuration'
(umask 022 && printf '%s\n' "$text_of_unit" > "$file.new" && mv -f "$file.new" "$file") || fail 'writing its unit'
systemctl daemon-reload || fail 'systemctl daemon-reload'
systemctl enable --quiet "$unit" || fail 'systemctl enable'
systemctl restart "$unit" || fail 'systemctl restart'
# a service that dies at once is started anew every three seconds, and is active for a moment each time
lasted=0 waited=0
while [ "$lasted" -lt 2 ] && [ "$waited" -lt 10 ]; do
  sleep 1
  waited=$((waited + 1))
  if systemctl is-active --quiet "$unit"; then lasted=$((lasted + 1)); else lasted=0; fi
done
[ "$lasted" -ge 2 ] || fail 'it ends as soon as it starts'
if ! $open; then
  allow || { forbid; fail "its firewall ($firewall)"; }
fi
# a firewall that is off keeps its rules, which go when it is on
if [ "$firewall" != none ] && [ "$(cat "$opened" 2> /dev/null)" != "$place" ]; then
  (kept forbid "$opened")
  rm -f "$opened"
  $open || printf '%s\n' "$place" > "$opened"
fi
program=$run
answer ok
