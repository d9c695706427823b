/** A VirtualBox VM that runs, as far as a program can tell that asks VBoxManage. */
import fs from 'fs-extra'
import { join } from 'node:path'

/**
 * Writes a VBoxManage into the folder, and the VM's guest into its folder `guest`. The environment says
 * it to what runs VBoxManage. The files `name`, `password`, `state` and `product` say what it answers, and
 * `settings`, where it is there, which file has the VM's; where there is a file `old`, it is that of 6.1.
 */
export async function runningVm(
  dir: string,
  { name, password, product = 'Linux' }: { name: string; password: string; product?: string },
): Promise<Record<'VBOXMANAGE' | 'VM', string>> {
  const program = join(dir, 'VBoxManage')
  await fs.writeFile(program, VBOXMANAGE, { mode: 0o755 })
  await fs.writeFile(join(dir, 'name'), name)
  await fs.writeFile(join(dir, 'password'), password)
  await fs.writeFile(join(dir, 'state'), 'running')
  await fs.writeFile(join(dir, 'product'), `Value: ${product}\n`)
  await fs.writeFile(join(dir, 'prelude.ps1'), await windowsGuest())
  await fs.ensureDir(join(dir, 'guest'))
  return { VBOXMANAGE: program, VM: dir }
}

/** The PowerShell that makes a Windows guest of the simulated one, with one thing to do. */
export async function windowsGuest(): Promise<string> {
  const services = "$guest.registry['HKLM:\\SYSTEM\\CurrentControlSet\\Services"
  return [
    await fs.readFile(
      join(import.meta.dirname as string, 'tasks', 'prepare-guest', 'guest.ps1'),
      'utf8',
    ),
    ...['vmbus', 'storvsc'].map((name) => `${services}\\${name}'] = @{ Start = 3 }`),
    "$guest.registry['HKLM:\\SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Uninstall'] = @{}",
    "$guest.registry['HKLM:\\SYSTEM\\CurrentControlSet\\Control\\CrashControl'] = @{ AutoReboot = 0 }",
    '',
  ].join('\n')
}

/** The real VBoxManage has no VM here that runs. This one has, and is strict about what 7.0 documents. */
const VBOXMANAGE = `#!/bin/bash
fail() { echo "VBoxManage: error: $1" >&2; exit 1; }
printf '%s\\n' "$*" >> "$VM/log"
id=00000000-0000-4000-8000-000000000001
case "$1" in
  list)
    [ "$2" = vms ] || [ "$2" = runningvms ] || fail "syntax: $*"
    [ "$2" = vms ] || [ "$(cat "$VM/state")" = running ] || exit 0
    printf '"%s" {%s}\\n' "$(cat "$VM/name")" "$id" ;;
  showvminfo)
    [ "$2 $3" = '--machinereadable --' ] || fail "syntax: $*"
    [ "$4" = "$(cat "$VM/name")" ] || [ "$4" = "$id" ] || fail "Could not find a registered machine named '$4'"
    [ ! -e "$VM/settings" ] || printf 'CfgFile="%s"\\n' "$(cat "$VM/settings")"
    printf 'name="x"\\nUUID="%s"\\nostype="Debian (64-bit)"\\nVMState="%s"\\n' "$id" "$(cat "$VM/state")" ;;
  guestproperty)
    [ "$2 $3 $4" = "get $id /VirtualBox/GuestInfo/OS/Product" ] || fail "syntax: $*"
    cat "$VM/product" ;;
  guestcontrol)
    [ "$2" = "$id" ] || fail "Could not find a registered machine named '$2'"
    verb=$3
    shift 3
    while [ $# -gt 0 ]; do
      case "$1" in
        --username) user=$2; shift 2 ;;
        --passwordfile) [ "$2" = stdin ] || fail "Cannot open password file '$2'"; shift 2 ;;
        --mode) [ "$verb" = mkdir ] || fail 'syntax'; mode=$2; shift 2 ;;
        --target-directory) [ "$verb" = copyto ] || fail 'syntax'; target=$2; shift 2 ;;
        --exe) [ "$verb" = run ] || fail 'syntax'; exe=$2; shift 2 ;;
        --timeout) [ "$verb" = run ] && [ "$2" -gt 0 ] || fail 'syntax'; shift 2 ;;
        --wait-stdout | --wait-stderr) [ "$verb" = run ] || fail 'syntax'; shift ;;
        --) shift; break ;;
        -*) fail "Unknown option: $1" ;;
        *) break ;;
      esac
    done
    IFS= read -r given
    [ "$given" = "$(cat "$VM/password")" ] || fail 'The specified user was not able to logon on guest'
    spec=0:0
    [ "$user" = root ] || spec=1000:1000
    cd "$VM/guest"
    windows=$(grep -c Windows "$VM/product")
    case "$verb$windows" in
      mkdir0) chroot --userspec=$spec . mkdir -m "$mode" "$1" ;;
      copyto0) cp "$1" ".$target" && chown $spec ".$target$(basename "$1")" ;;
      run0)
        # up to 6.1 the first of the arguments was the program's own name
        [ ! -e "$VM/old" ] || shift
        exec chroot --userspec=$spec . "$exe" "$@" ;;
      rm0) chroot --userspec=$spec . rm "$1" ;;
      rmdir0) chroot --userspec=$spec . rmdir "$1" ;;
      mkdir1) touch "folder $1" ;;
      copyto1) cp "$1" "$target$(basename "$1")" ;;
      run1)
        [ "$exe" = 'C:\\Windows\\System32\\WindowsPowerShell\\v1.0\\powershell.exe' ] || fail "no such file: $exe"
        [ ! -e "$VM/old" ] || shift
        exec pwsh "$\{@:1:$#-1}" ". '$VM/prelude.ps1'; $\{!#}" ;;
      rm1) rm -- "$1" ;;
      rmdir1) rm -- "folder $1" ;;
      *) fail "syntax: $verb" ;;
    esac ;;
  *) fail "syntax: $*" ;;
esac
`.replaceAll('$\\{', '${')
