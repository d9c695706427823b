# Prepares a Linux guest of VirtualBox for its first start on Hyper-V, or takes that back. Runs as root
# in the guest, in any POSIX sh, and prints one line of JSON. The lines before this one set
#   mode            prepare or undo
#   dry             1: only say what would change
#   keep_additions  1: leave the Guest Additions alone
#   detached        1: the Guest Additions carry this script, so they are removed after it
#   shut_down       1: shut the guest down after it, unless it would not start on Hyper-V
#   enhanced        1: have xrdp listen to enhanced sessions of Hyper-V
#
# What is changed is kept in $store: `list` has a line "old SUM PATH" for a file that was there (a copy
# is below files/), "new SUM PATH" for one that was not, "gone - PATH" for one that was removed, and
# "image - KERNEL" for an initramfs that was rebuilt, "package - NAME" for one that was installed. SUM is of what was written, by which the undo
# knows a file that someone has changed since.
set -u
export LC_ALL=C PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:${PATH:-}"
umask 022
store=/var/lib/vbox-to-hyperv
steps='' changed=false after=''
: "${shut_down:=0}" "${enhanced:=0}"

# --- what is said ---

json() { printf '"%s"' "$(printf '%s' "$1" | tr '\n\r\t' '   ' | tr -d '\000-\037\177' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

# say STEP STATE TEXT, where STATE is ok, changed, warning or refusal
say() {
  steps="$steps${steps:+,}{\"step\":$(json "$1"),\"state\":\"$2\",\"detail\":$(json "$3")}"
  [ "$2" != changed ] || changed=true
}

finish() {
  printf '{"guest":"linux","changed":%s,"steps":[%s],"before":[%s]}\n' "$changed" "$steps" "$(paste -s -d, "$scratch/before" 2> /dev/null)"
  exit 0
}

# the last words of a program that failed
last() { printf '%s\n' "$1" | grep -v '^[[:space:]]*$' | tail -n 2 | tr '\n' ' ' | cut -c 1-300 | sed 's/[. ]*$//'; }

# --- what is written ---

# in one word, by a program that is there: a small busybox has no cksum
sum() {
  for program in cksum sha256sum md5sum wc; do
    command -v "$program" > /dev/null || continue
    "$program" < "$1" | tr -s ' ' '-'
    return
  done
}

# the line of $store/list about a path
listed() {
  [ -f "$store/list" ] && awk -v path="$1" '{ line = $0; kind = $1; sub(/^[^ ]+ [^ ]+ /, "") } $0 == path && kind != "image" && kind != "package" { print line; exit }' "$store/list"
}

note() { # KIND SUM PATH, in place of what was noted of the path
  mkdir -p "$store" && chmod 700 "$store" && touch "$store/list" || return 1
  awk -v kind="$1" -v path="$3" '
    { line = $0; first = $1; sub(/^[^ ]+ [^ ]+ /, "") }
    !($0 == path && (first == "image") == (kind == "image")) { print line }' "$store/list" > "$store/list.new" || return 1
  printf '%s %s %s\n' "$1" "$2" "$3" >> "$store/list.new" && mv -f "$store/list.new" "$store/list"
}

# a copy of a file as it was before the first change
keep() {
  [ -n "$(listed "$1")" ] && return 0
  mkdir -p "$store/files$(dirname "$1")" && chmod 700 "$store" && cp -a "$1" "$store/files$1"
}

# was PATH [BACKUP], for the answer; no BACKUP: it was not there. In a file, for pipes run in subshells
was() {
  printf '{"what":%s,"was":%s}\n' "$(json "$1")" "$([ -n "${2:-}" ] && json "$2" || printf null)" >> "$scratch/before"
}

# put PATH: writes standard input there, whole or not at all
put() {
  put_path=$1
  [ ! -L "$put_path" ] || put_path=$(readlink -f "$put_path")
  if [ "$dry" = 1 ]; then cat > /dev/null; return 0; fi
  put_kind=new
  [ ! -e "$put_path" ] || put_kind=old
  put_before=$(listed "$put_path")
  mkdir -p "$(dirname "$put_path")" || return 1
  # the copy has the file's owner and rights
  if [ "$put_kind" = old ]; then
    keep "$put_path" && cp -a "$put_path" "$put_path.vbox-to-hyperv" || return 1
  fi
  if ! { cat > "$put_path.vbox-to-hyperv" && mv -f "$put_path.vbox-to-hyperv" "$put_path"; }; then
    rm -f "$put_path.vbox-to-hyperv"
    return 1
  fi
  # of the first change, where there were several
  [ -z "$put_before" ] || put_kind=${put_before%% *}
  note "$put_kind" "$(sum "$put_path")" "$put_path" || return 1
  if [ "$put_kind" = old ]; then was "$put_path" "$store/files$put_path"; else was "$put_path"; fi
}

# takes a file away, and keeps it
take() {
  [ "$dry" != 1 ] || return 0
  keep "$1" && note gone - "$1" && rm -f "$1" && was "$1" "$store/files$1"
}

# --- the initramfs ---

# what Hyper-V needs to start, and then what it is good to have: network, mouse, keyboard (for a
# passphrase at the console of generation 2)
NEEDED='hv_vmbus hv_storvsc'
WANTED="$NEEDED hv_netvsc hid_hyperv hyperv_keyboard"

kernels() {
  for folder in /lib/modules/*/; do
    kernel=$(basename "$folder")
    # a removed kernel leaves a folder behind when other modules were put there
    for image in "/boot/vmlinuz-$kernel" "/boot/vmlinux-$kernel" "/boot/Image-$kernel" "${folder}vmlinuz"; do
      [ -e "$image" ] || continue
      printf '%s\n' "$kernel"
      break
    done
  done | { sort -V 2> /dev/null || sort; }
}

# inventory KERNEL: its drivers for Hyper-V, as " module:hv_vmbus builtin:hv_storvsc "
inventory() {
  {
    sed -n 's|.*/\(h[viy][^/]*\)[.]ko.*|builtin:\1|p' "/lib/modules/$1/modules.builtin" 2> /dev/null
    find "/lib/modules/$1/" -name 'h[viy]*.ko*' 2> /dev/null | sed 's|.*/|module:|; s|[.]ko.*||'
  } | tr '\n-' ' _' | sed 's/^/ /' # a file may be named hid-hyperv, its module is hid_hyperv
}

# those INVENTORY KIND MODULE...: the modules of this kind; none: that are of no kind
those() {
  those_in=$1 those_kind=$2 those_all=''
  shift 2
  for module in "$@"; do
    case "$those_in" in
      *" builtin:$module "*) those_is=builtin ;;
      *" module:$module "*) those_is=module ;;
      *) those_is=none ;;
    esac
    [ "$those_is" != "$those_kind" ] || those_all="$those_all${those_all:+ }$module"
  done
  printf '%s' "$those_all"
}

images() { # KERNEL: its initramfs, a line each
  case $tool in
    initramfs-tools) set -- "/boot/initrd.img-$1" ;;
    mkinitcpio)
      preset="/etc/mkinitcpio.d/$(cat "/lib/modules/$1/pkgbase" 2> /dev/null).preset"
      [ -f "$preset" ] || return 0
      # its lists are bash's, so it is read and not run
      sed -n "s/^ *\\(default\\|fallback\\)_\\(image\\|uki\\)=[\"']*\\([^\"' ]*\\).*/\\3/p" "$preset"
      return 0 ;;
    *)
      machine=$(cat /etc/machine-id 2> /dev/null)
      set -- "/boot/initramfs-$1.img" "/boot/initrd-$1" "/boot/initrd.img-$1" "/boot/$machine/$1/initrd" "/efi/$machine/$1/initrd" "/boot/efi/$machine/$1/initrd" ;;
  esac
  for image in "$@"; do
    [ -f "$image" ] && printf '%s\n' "$image" && return 0
  done
}

contents() {
  case $tool in
    initramfs-tools) lsinitramfs "$1" ;;
    dracut) lsinitrd "$1" ;;
    mkinitcpio) lsinitcpio "$1" ;;
  esac
}

# lacks IMAGE MODULE...: those that are not in it
lacks() {
  lacks_in=" $(contents "$1" 2> /dev/null | sed -n 's|.*/\(h[viy][^/]*\)[.]ko.*|\1|p' | tr '\n-' ' _')"
  lacks_all=''
  shift
  for module in "$@"; do
    case "$lacks_in" in *" $module "*) ;; *) lacks_all="$lacks_all${lacks_all:+ }$module" ;; esac
  done
  printf '%s' "$lacks_all"
}

# how the next kernel's initramfs gets the modules too
configure() {
  case $tool in
    initramfs-tools)
      file=/etc/initramfs-tools/modules
      { cat "$file" 2> /dev/null
        for module in "$@"; do grep -qx "$module" "$file" 2> /dev/null || printf '%s\n' "$module"; done
      } | same "$file" ;;
    dracut)
      # spaces at both ends: other files add to the same list
      printf 'add_drivers+=" %s "\n' "$*" | same /etc/dracut.conf.d/vbox-to-hyperv.conf ;;
    mkinitcpio)
      line="MODULES+=($(printf '%s? ' "$@" | sed 's/ $//'))" # ?: no error where a kernel lacks it
      if [ -d /etc/mkinitcpio.conf.d ]; then
        printf '%s\n' "$line" | same /etc/mkinitcpio.conf.d/vbox-to-hyperv.conf
      else
        { grep -vxF "$line" /etc/mkinitcpio.conf; printf '%s\n' "$line"; } | same /etc/mkinitcpio.conf
      fi ;;
  esac
}

# puts standard input into a file unless that is what it holds
same() {
  text=$(cat; printf .)
  [ "$(cat "$1" 2> /dev/null; printf .)" != "$text" ] || return 0
  printf '%s' "${text%.}" | put "$1"
}

rebuild() { # KERNEL IMAGE
  case $tool in
    initramfs-tools) update-initramfs -u -k "$1" ;;
    dracut) dracut --force "$2" "$1" ;;
    mkinitcpio) mkinitcpio -p "$(cat "/lib/modules/$1/pkgbase")" ;;
  esac 2>&1
}

find_tool() {
  if [ -d /usr/share/initramfs-tools ] && command -v update-initramfs > /dev/null; then echo initramfs-tools
  elif command -v dracut > /dev/null; then echo dracut
  elif command -v mkinitcpio > /dev/null; then echo mkinitcpio
  else echo none; fi
}

initramfs() {
  all=$(kernels)
  newest=$(printf '%s\n' "$all" | tail -n 1)
  [ -n "$all" ] || { say initramfs warning 'No kernel was found below /lib/modules, so whether it has the drivers of Hyper-V is not known'; return; }
  todo='' fine=''
  for kernel in $all; do
    bad=warning
    [ "$kernel" != "$newest" ] || bad=refusal
    has=$(inventory "$kernel")
    # shellcheck disable=SC2086
    none=$(those "$has" none $NEEDED)
    if [ -n "$none" ]; then
      say initramfs "$bad" "The kernel $kernel has no $none, neither built in nor as a module, and does not start on Hyper-V. Install a kernel that has them (Debian: linux-image-amd64, Ubuntu: linux-image-generic)"
      continue
    fi
    # shellcheck disable=SC2086
    modules=$(those "$has" module $WANTED)
    # shellcheck disable=SC2086
    if [ -z "$(those "$has" module $NEEDED)" ]; then
      fine="$fine $kernel"
      continue
    fi
    if [ "$tool" = none ]; then
      say initramfs warning "The initramfs of $kernel is made by a program that this command does not know. See that it has $modules"
      continue
    fi
    found=$(images "$kernel")
    if [ -z "$found" ]; then
      say initramfs "$bad" "The kernel $kernel has no initramfs, and has $modules as modules only. Make one: $(by_hand "$kernel")"
      continue
    fi
    missing=''
    for image in $found; do
      # shellcheck disable=SC2086
      [ -z "$(lacks "$image" $modules)" ] || missing=$image
    done
    if [ -n "$missing" ]; then todo="$todo $kernel"; else fine="$fine $kernel"; fi
  done
  [ -z "$fine" ] || say initramfs ok "The drivers of Hyper-V are there for$fine"
  [ -n "$todo" ] || return 0
  if [ "$dry" = 1 ]; then
    say initramfs changed "The drivers of Hyper-V would be added to the initramfs of$todo, by $tool"
    return
  fi
  # shellcheck disable=SC2086
  configure $(those "$(for kernel in $todo; do inventory "$kernel"; done | sed 's/builtin:/-:/g')" module $WANTED) ||
    say initramfs warning "The configuration of $tool could not be written, so kernels to come will lack the drivers of Hyper-V"
  for kernel in $todo; do
    bad=warning
    [ "$kernel" != "$newest" ] || bad=refusal
    has=$(inventory "$kernel")
    # shellcheck disable=SC2086
    modules=$(those "$has" module $WANTED)
    note image - "$kernel"
    output='' failed=''
    for image in $(images "$kernel"); do
      output=$(rebuild "$kernel" "$image") || failed=1
    done
    left=''
    for image in $(images "$kernel"); do
      # shellcheck disable=SC2086
      left="$left $(lacks "$image" $modules)"
    done
    left=$(for module in $modules; do case " $left " in *" $module "*) printf '%s ' "$module" ;; esac; done | sed 's/ $//')
    mend="Run: $(by_hand "$kernel")"
    case " $left " in
      *' hv_vmbus '* | *' hv_storvsc '*)
        say initramfs "$bad" "The initramfs of $kernel lacks $left after $tool has made it anew${failed:+: $(last "$output")}. $mend" ;;
      *)
        say initramfs changed "The initramfs of $kernel has the drivers of Hyper-V now"
        [ -z "$left" ] || say initramfs warning "The initramfs of $kernel lacks $left, which it can start without"
        [ -z "$failed" ] || say initramfs warning "$tool says that it failed for $kernel: $(last "$output"). $mend" ;;
    esac
  done
}

by_hand() {
  case $tool in
    initramfs-tools) printf 'sudo update-initramfs -c -k %s' "$1" ;;
    dracut) printf 'sudo dracut --force --add-drivers "%s" --kver %s' "$WANTED" "$1" ;;
    mkinitcpio) printf 'sudo mkinitcpio -P' ;;
    *) printf 'see the manual of the distribution' ;;
  esac
}

# --- mounts ---

shared_folders() {
  [ -f /etc/fstab ] || { say shared-folders ok 'There is no /etc/fstab'; return; }
  folders=$(awk '$1 !~ /^#/ && $3 == "vboxsf" { printf "%s%s", (n++ ? ", " : ""), $2 }' /etc/fstab)
  if [ -z "$folders" ]; then
    say shared-folders ok '/etc/fstab mounts no shared folder of VirtualBox'
  elif awk '$1 !~ /^#/ && $3 == "vboxsf" { print "# vbox-to-hyperv: " $0; next } { print }' /etc/fstab | put /etc/fstab; then
    say shared-folders changed "/etc/fstab mounts no shared folder of VirtualBox any more: $folders"
  else
    say shared-folders warning "The shared folders in /etc/fstab could not be commented out, and the start may wait for them or end in emergency mode: $folders"
  fi
}

# Names that tell the controller are others on Hyper-V, where every disk is /dev/sd*.
device_names() {
  done='' left='' mounts=''
  for file in /etc/fstab /etc/crypttab; do
    [ -f "$file" ] || continue
    column=1
    [ "$file" = /etc/fstab ] || column=2
    names=$(awk -v c="$column" '$1 !~ /^#/ && $c ~ "^/dev/((sd|hd|vd|xvd|nvme)[^/]*|disk/by-(id|path)/.*)$" { print $c }' "$file")
    [ -n "$names" ] || continue
    new=$(cat "$file"; printf .)
    new=${new%.}
    for name in $names; do
      uuid=$(blkid -o value -s UUID "$name" 2> /dev/null | head -n 1)
      if [ -n "$uuid" ]; then
        new=$(printf '%s' "$new" | awk -v c="$column" -v name="$name" -v uuid="$uuid" '
          $1 !~ /^#/ && $c == name { at = index($0, name); $0 = substr($0, 1, at - 1) "UUID=" uuid substr($0, at + length(name)) } { print }'; printf .)
        new=${new%.}
        done="$done${done:+, }$name"
      else
        # without nofail or noauto a disk that is not found ends the start in emergency mode
        hard=$(awk -v c="$column" -v name="$name" '$1 !~ /^#/ && $c == name && $4 !~ /nofail|noauto/' "$file")
        case $name in
          # a single disk on the first controller keeps this name
          /dev/sd*) ;;
          *) [ -z "$hard" ] || [ ! -e "$name" ] || left="$left${left:+, }$name in $file" ;;
        esac
      fi
    done
    if [ "$new" != "$(cat "$file"; printf .)" ] && ! printf '%s' "$new" | same "$file"; then
      mounts="$mounts $file"
    fi
  done
  [ -z "$mounts" ] || { say device-names warning "Could not write$mounts, where disks are named by their controller: $done"; done=''; }
  [ -z "$left" ] || say device-names refusal "On Hyper-V there is no $left, and it has no UUID to name it by. Name it by LABEL= or PARTUUID= (see: blkid), or add nofail"
  root=$(cat /proc/cmdline 2> /dev/null | tr ' ' '\n' | sed -n 's/^root=//p' | tail -n 1)
  case $root in
    /dev/nvme* | /dev/hd* | /dev/vd* | /dev/xvd* | /dev/disk/by-id/* | /dev/disk/by-path/*)
      say device-names refusal "The kernel is told root=$root, which there is not on Hyper-V. Write root=UUID=$(blkid -o value -s UUID "$root" 2> /dev/null) into GRUB_CMDLINE_LINUX of /etc/default/grub, and run: sudo update-grub" ;;
  esac
  if [ -n "$done" ]; then say device-names changed "Disks are named by UUID, and not by their controller: $done"
  elif [ -z "$left$mounts" ]; then say device-names ok 'No disk is named by its controller'; fi
}

# What a TPM unlocks waits for a passphrase on Hyper-V, whose TPM is another.
encryption() {
  locked=$(awk '$1 !~ /^#/ && $4 ~ /tpm2-device=/ { printf "%s%s", (n++ ? ", " : ""), $2 }' /etc/crypttab 2> /dev/null)
  if [ -z "$locked" ]; then say encryption ok 'No disk in /etc/crypttab is unlocked by a TPM'
  else say encryption warning "The TPM unlocks $locked, and the new VM has another one. See that there is a passphrase too: sudo systemd-cryptenroll DEVICE. To add one: sudo systemd-cryptenroll --password DEVICE"; fi
}

# --- network ---

# Whatever configures the network, it goes on by the name that it knows: that follows the bus (enp0s3),
# and would be eth0 on Hyper-V. The file matches by MAC address, and by driver, so that it does nothing
# while VirtualBox still runs the guest.
network() {
  pinned='' free='' failed='' eth=0
  for card in /sys/class/net/*; do
    [ -e "$card/device" ] || continue
    case $(readlink "$card/device/subsystem") in */usb) continue ;; esac
    name=$(basename "$card")
    mac=$(cat "$card/bonding_slave/perm_hwaddr" 2> /dev/null || cat "$card/address" 2> /dev/null)
    printf '%s\n' "$mac" | grep -qx '[0-9a-f][0-9a-f]\(:[0-9a-f][0-9a-f]\)\{5\}' || continue
    case $name in *[!A-Za-z0-9_.-]*) failed="$failed $name"; continue ;; esac
    if ! configured "$name"; then
      free="$free $name"
      continue
    fi
    case $name in eth[0-9]*) eth=$((eth + 1)) ;; esac
    if [ -e /lib/systemd/network/99-default.link ] || [ -e /usr/lib/systemd/network/99-default.link ]; then
      file="/etc/systemd/network/10-vbox-to-hyperv-$name.link"
      printf '%s\n' '# vbox-to-hyperv: on Hyper-V too this adapter has the name that its configuration uses.' \
        '[Match]' "MACAddress=$mac" 'Driver=hv_netvsc' '' '[Link]' "Name=$name"
    elif [ -d /etc/udev/rules.d ]; then
      file="/etc/udev/rules.d/70-vbox-to-hyperv-$name.rules"
      printf '%s\n' '# vbox-to-hyperv: on Hyper-V too this adapter has the name that its configuration uses.' \
        "SUBSYSTEM==\"net\", ACTION==\"add\", DRIVERS==\"hv_netvsc\", ATTR{address}==\"$mac\", NAME=\"$name\""
    else
      file=''
    fi > "$scratch/file"
    if [ -z "$file" ]; then
      failed="$failed $name"
    elif cmp -s "$scratch/file" "$file"; then
      free="$free $name"
    elif put "$file" < "$scratch/file"; then
      pinned="$pinned $name ($mac)"
    else
      failed="$failed $name"
    fi
  done
  rules=/etc/udev/rules.d/70-persistent-net.rules
  old=''
  if grep -q '^[^#]' "$rules" 2> /dev/null; then
    if take "$rules"; then old=1; else failed="$failed $rules"; fi
  fi
  [ -z "$pinned" ] || say network changed "Adapters keep by MAC address the names that the configuration uses:$pinned. The VM on Hyper-V has to have the same MAC addresses"
  [ -z "$old" ] || say network changed "$rules, which gives names by the old hardware, is taken away"
  [ -z "$failed" ] || say network warning "The network may be down on Hyper-V, where the names of adapters are others. These could not be bound to their MAC addresses:$failed"
  [ "$eth" -lt 2 ] || say network warning 'Several adapters are named eth0, eth1 and so on, and the kernel may give these names in another order. See after the first start: ip -brief link'
  [ -n "$pinned$old$failed" ] || say network ok "No adapter depends on a name that changes:${free:- there is none}"
}

# whether anything that configures the network or the firewall says this name
configured() {
  for folder in /etc/sysconfig/network-scripts /etc/sysconfig/network; do
    [ ! -e "$folder/ifcfg-$1" ] || return 0
  done
  [ ! -e "/etc/conf.d/net.$1" ] || return 0
  grep -rlwF -e "$1" /etc/netplan /etc/network /etc/NetworkManager/system-connections /etc/sysconfig/network-scripts \
    /etc/sysconfig/network /etc/systemd/network /etc/udev/rules.d /etc/dhcpcd.conf /etc/conf.d /etc/nftables.conf /etc/nftables \
    /etc/iptables /etc/ufw /etc/firewalld /etc/shorewall /etc/dnsmasq.conf /etc/dnsmasq.d /etc/default/isc-dhcp-server \
    2> /dev/null | grep -qv '/[17]0-vbox-to-hyperv-'
}

# --- UEFI ---

boot_loader() {
  [ -d /sys/firmware/efi ] || { say boot-loader ok 'The guest starts by BIOS'; return; }
  esp=''
  for folder in /boot/efi /efi /boot /boot/EFI; do
    [ -z "$esp" ] && [ -n "$(find "$folder" -mindepth 2 -maxdepth 2 -ipath "$folder/efi/*" 2> /dev/null | head -n 1)" ] && esp=$folder
  done
  mend='Run: sudo grub-install --target=x86_64-efi --removable'
  [ -n "$esp" ] || { say boot-loader refusal "The EFI system partition is not mounted, so whether it has EFI/BOOT/BOOTX64.EFI is not known, and a new VM starts no other. Run: sudo mount /boot/efi"; return; }
  there=$(find "$esp" -maxdepth 3 -ipath "$esp/efi/boot/bootx64.efi" 2> /dev/null | head -n 1)
  [ -z "$there" ] || { say boot-loader ok "$there is there, which a new VM starts"; return; }
  id=$(sed -n 's/^ID=//p' /etc/os-release 2> /dev/null | tr -d "\"'")
  from=''
  for loader in shimx64.efi grubx64.efi systemd-bootx64.efi; do
    [ -z "$from" ] || break
    from=$({ find "$esp" -maxdepth 3 -ipath "$esp/efi/${id:-linux}/$loader"; find "$esp" -maxdepth 3 -ipath "$esp/efi/*/$loader"; } 2> /dev/null | head -n 1)
  done
  [ -n "$from" ] || { say boot-loader refusal "There is no EFI/BOOT/BOOTX64.EFI below $esp, which is all that a new VM starts, and no loader to put there. $mend"; return; }
  efi=$(find "$esp" -mindepth 1 -maxdepth 1 -iname efi -type d | head -n 1)
  boot=$(find "$efi" -mindepth 1 -maxdepth 1 -iname boot -type d | head -n 1)
  boot=${boot:-$efi/BOOT}
  failed=''
  # shim starts what is beside it
  for loader in grubx64.efi mmx64.efi; do
    [ "$(basename "$from")" = shimx64.efi ] || break
    beside=$(find "$(dirname "$from")" -maxdepth 1 -iname "$loader" | head -n 1)
    [ -z "$beside" ] || put "$boot/$loader" < "$beside" || failed=1
  done
  # the last, so that it is there only with what it needs
  [ -n "$failed" ] || put "$boot/BOOTX64.EFI" < "$from" || failed=1
  if [ -n "$failed" ]; then say boot-loader refusal "$from could not be copied to $boot/BOOTX64.EFI, which is all that a new VM starts. $mend"
  else say boot-loader changed "$from is also $boot/BOOTX64.EFI, which a new VM starts"; fi
}

# --- programs ---

kvp_daemon() {
  for file in /usr/sbin/hv_kvp_daemon /usr/sbin/hypervkvpd /usr/bin/hv_kvp_daemon /usr/lib/hyper-v/bin/hv_kvp_daemon /usr/libexec/hypervkvpd/hypervkvpd /usr/lib/linux-tools/*/hv_kvp_daemon; do
    [ ! -x "$file" ] || { printf '%s' "$file"; return; }
  done
}

# packages install|remove NAME, by the distribution's own program
packages() {
  limit=''
  ! command -v timeout > /dev/null || limit='timeout 300'
  # shellcheck disable=SC2086
  case $manager-$1 in
    apt-get-*) DEBIAN_FRONTEND=noninteractive $limit apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=60 "$1" "$2" ;;
    dnf-*) $limit dnf -q -y "$1" "$2" ;;
    zypper-*) $limit zypper --non-interactive "$1" "$2" ;;
    pacman-install) $limit pacman -S --noconfirm --needed "$2" ;;
    pacman-remove) $limit pacman -R --noconfirm "$2" ;;
    apk-install) $limit apk add "$2" ;;
    apk-remove) $limit apk del "$2" ;;
  esac < /dev/null 2>&1
}

find_manager() {
  for manager in apt-get dnf zypper pacman apk; do command -v "$manager" > /dev/null && return; done
  manager=''
}

daemons() {
  daemon=$(kvp_daemon)
  [ -z "$daemon" ] || { say daemons ok "$daemon is there, which tells the host the guest’s addresses"; return; }
  find_manager
  ids=" $(sed -n 's/^ID=//p; s/^ID_LIKE=//p' /etc/os-release 2> /dev/null | tr -d "\"'" | tr '\n' ' ')"
  case $ids in
    *' ubuntu '*) package=linux-cloud-tools-virtual how="sudo apt-get install $package" ;;
    *' debian '*) package=hyperv-daemons how="sudo apt-get install $package" ;;
    *' fedora '* | *' rhel '* | *' centos '*) package=hyperv-daemons how="sudo dnf install $package" ;;
    *suse*) package=hyper-v how="sudo zypper install $package" ;;
    *' arch '*) package=hyperv how="sudo pacman -S $package" ;;
    *' alpine '*) package=hvtools how="sudo apk add $package" ;;
    *) package='' how='' ;;
  esac
  lacks='Without hv_kvp_daemon the host does not learn the guest’s addresses'
  if [ -z "$package" ] || [ -z "$manager" ]; then
    say daemons warning "$lacks.${how:+ Run while it has a network: $how}"
  elif [ "$dry" = 1 ]; then
    say daemons changed "$package would be installed, which tells the host the guest’s addresses"
  elif output=$(packages install "$package") || { [ "$manager" = apt-get ] && timeout 300 apt-get -q update > /dev/null 2>&1 < /dev/null && output=$(packages install "$package"); }; then
    note package - "$package" && was "$package"
    say daemons changed "$package is installed, which tells the host the guest’s addresses"
  else
    say daemons warning "$lacks, and $package could not be installed: $(last "$output"). Run while it has a network: $how"
  fi
}

# Enhanced sessions of Hyper-V come by hv_sock, not by a network: xrdp listens there alone then, for it has
# no encryption of its own there (microsoft/linux-vm-tools; assumption: nothing else is needed).
enhanced_session() {
  [ "$enhanced" = 1 ] || return 0
  ini=/etc/xrdp/xrdp.ini
  [ -f "$ini" ] || { say enhanced-session warning 'There is no xrdp, which enhanced sessions need. Run while it has a network (Debian, Ubuntu): sudo apt-get install xrdp xorgxrdp, and this again'; return; }
  awk '
    /^\[/ { globals = tolower($0) ~ /^\[globals\]/ }
    globals && /^port=/ { $0 = "port=vsock://-1:3389" }
    globals && /^use_vsock=/ { $0 = "use_vsock=false" }
    globals && /^security_layer=/ { $0 = "security_layer=rdp" }
    globals && /^crypt_level=/ { $0 = "crypt_level=none" }
    { print }' "$ini" > "$scratch/xrdp"
  printf 'hv_sock\n' > "$scratch/modules"
  if cmp -s "$scratch/xrdp" "$ini" && cmp -s "$scratch/modules" /etc/modules-load.d/vbox-to-hyperv.conf; then
    say enhanced-session ok 'xrdp listens to enhanced sessions of Hyper-V'
  elif same "$ini" < "$scratch/xrdp" && same /etc/modules-load.d/vbox-to-hyperv.conf < "$scratch/modules"; then
    say enhanced-session changed 'xrdp listens to enhanced sessions of Hyper-V, and no longer to a network'
  else
    say enhanced-session warning "xrdp could not be set to enhanced sessions of Hyper-V. Write into [Globals] of $ini: port=vsock://-1:3389, security_layer=rdp, crypt_level=none"
  fi
}

additions() {
  config=/var/lib/VBoxGuestAdditions/config
  folder=$(sed -n "s/^INSTALL_DIR=//p" "$config" 2> /dev/null | tr -d "\"'")
  if [ "$keep_additions" = 1 ]; then
    say guest-additions ok 'The Guest Additions are left alone'
  elif [ -z "$folder" ] || [ ! -f "$folder/uninstall.sh" ]; then
    if [ -e /usr/sbin/VBoxService ] || [ -e /usr/bin/VBoxService ]; then
      say guest-additions warning 'The Guest Additions are a package of the distribution, and stay. They do nothing on Hyper-V. To remove them (Debian, Ubuntu): sudo apt-get remove virtualbox-guest-utils virtualbox-guest-x11'
    else
      say guest-additions ok 'There are no Guest Additions'
    fi
  elif [ "$dry" = 1 ]; then
    say guest-additions changed "The Guest Additions in $folder would be removed, for good"
  elif [ "$detached" = 1 ]; then
    after=$folder/uninstall.sh
    say guest-additions changed "The Guest Additions in $folder, which carry this answer, are removed in 20 seconds, for good"
  elif output=$(sh "$folder/uninstall.sh" 2>&1 < /dev/null); then
    say guest-additions changed "The Guest Additions in $folder are removed, for good"
  else
    say guest-additions warning "The Guest Additions could not be removed, and do nothing on Hyper-V: $(last "$output"). Run in the guest: sudo sh $folder/uninstall.sh"
  fi
}

# What is to happen after the answer has got out, in this order: the Guest Additions, which may carry it,
# are removed, and the guest is shut down.
afterwards() {
  down=''
  if [ "$shut_down" = 1 ]; then
    case $steps in
      *'"state":"refusal"'*) say shut-down warning 'The guest stays on, for as it is it would not start on Hyper-V' ;;
      *)
        down='shutdown -h now || poweroff'
        if [ "$dry" = 1 ]; then say shut-down changed 'The guest would be shut down'; return; fi
        say shut-down changed 'The guest shuts down in 20 seconds'
        ;;
    esac
  fi
  [ -n "$after$down" ] || return 0
  [ -n "$down" ] || down=:
  # each by itself: an uninstaller that fails keeps no guest from shutting down
  job='[ -z "$1" ] || sh "$1"; eval "$2"'
  if command -v systemd-run > /dev/null && [ -d /run/systemd/system ]; then
    output=$(systemd-run --quiet --on-active=20 /bin/sh -c "$job" sh "$after" "$down" 2>&1) && return
    [ -z "$after" ] || say guest-additions warning "The Guest Additions stay: $(last "$output"). Run in the guest: sudo sh $after"
    [ "$down" = : ] || say shut-down warning "The guest stays on: $(last "$output"). Run in it: sudo shutdown -h now"
  else
    setsid sh -c "sleep 20; $job" sh "$after" "$down" < /dev/null > /dev/null 2>&1 &
  fi
}

# --- undo ---

undo() {
  [ -f "$store/list" ] || { say undo ok 'Nothing was changed here'; return; }
  left=''
  while IFS=' ' read -r kind sum path; do
    case $kind in image | package) continue ;; esac
    kept=''
    [ "$kind" = new ] || kept="what it was is in $store/files$path"
    if [ "$kind" != gone ] && [ -e "$path" ] && [ "$(sum "$path")" != "$sum" ]; then
      say undo warning "$path was changed since, and stays as it is${kept:+: $kept}"
      left=1
    elif [ "$dry" = 1 ]; then
      say undo changed "$path would be as it was"
    elif [ "$kind" = new ]; then
      if rm -f "$path"; then say undo changed "$path is gone again"; else say undo warning "$path could not be removed"; left=1; fi
    elif [ "$kind" = gone ] && [ -e "$path" ]; then
      say undo warning "$path is there again, and stays as it is: $kept"
      left=1
    elif cp -a "$store/files$path" "$path.vbox-to-hyperv" && mv -f "$path.vbox-to-hyperv" "$path"; then
      say undo changed "$path is as it was"
    else
      say undo warning "$path could not be written: $kept"
      left=1
    fi
  done < "$store/list"
  for kernel in $(awk '$1 == "image" { print $3 }' "$store/list"); do
    [ -n "$(images "$kernel")" ] || continue
    if [ "$dry" = 1 ]; then
      say undo changed "The initramfs of $kernel would be made anew"
      continue
    fi
    for image in $(images "$kernel"); do
      if output=$(rebuild "$kernel" "$image"); then say undo changed "$image is made anew"
      else say undo warning "$image could not be made anew, and has drivers that it did not have: $(last "$output")"; fi
    done
  done
  find_manager
  for package in $(awk '$1 == "package" { print $3 }' "$store/list"); do
    if [ "$dry" = 1 ]; then say undo changed "$package would be removed"
    elif output=$(packages remove "$package"); then say undo changed "$package is removed"
    else say undo warning "$package could not be removed, and stays: $(last "$output")"; fi
  done
  [ "$dry" = 1 ] || [ -n "$left" ] || rm -rf "$store"
}

scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
[ "$(id -u)" = 0 ] || { say rights refusal "The account $(id -un) is not root"; finish; }
tool=$(find_tool)
if [ "$mode" = undo ]; then
  undo
else
  shared_folders
  device_names
  encryption
  network
  initramfs
  boot_loader
  daemons
  enhanced_session
  additions
  afterwards
fi
finish
