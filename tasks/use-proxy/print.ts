/** What programs are told of a proxy, as text: variables for a shell, and a PAC file. */

/** The addresses of a proxy, and what goes through it. */
export interface Ways {
  /** `http://HOST:PORT` */
  http?: string | undefined
  /** `socks5h://HOST:PORT`: the proxy looks names up, as this machine does not know the intranet's. */
  socks?: string | undefined
  /** Hosts, domains and networks that are reached without it. */
  direct: readonly string[]
}

/** The variables that curl, wget, Python, Go and most others read. */
export function variables({ http, socks, direct }: Ways): Record<string, string> {
  const web = http ?? socks ?? ''
  return {
    HTTP_PROXY: web,
    HTTPS_PROXY: web,
    ALL_PROXY: socks ?? web,
    NO_PROXY: direct.join(','),
  }
}

export type Shell = 'bash' | 'powershell' | 'cmd'

/** Lines for a shell. The values have no character that any of them reads, as use-proxy.ts checks. */
export function forShell(shell: Shell, ways: Ways): string {
  const lines = Object.entries(variables(ways)).flatMap(([name, value]) =>
    shell === 'powershell'
      ? [`$env:${name} = '${value}'`]
      : shell === 'cmd'
      ? [`set "${name}=${value}"`]
      // curl reads http_proxy in small letters alone
      : [`export ${name}='${value}'`, `export ${name.toLowerCase()}='${value}'`]
  )
  return lines.join('\n')
}

/**
 * A PAC file by which browsers send only these domains, with all below them, and networks through the
 * proxy. A network holds for addresses that are written as such: no name is looked up for it, which
 * would tell the names of the intranet to a DNS that does not know them. Nothing of it goes direct when
 * the proxy is gone, for the same reason.
 */
export function pacFile(
  { http, socks }: Ways,
  domains: readonly string[],
  networks: readonly string[],
): string {
  const [proxy, second] = [
    http && `PROXY ${http.replace(/^http:\/\//, '')}`,
    socks && `SOCKS5 ${socks.replace(/^socks5h:\/\//, '')}`,
  ].filter(Boolean)
  const way = second ? `${proxy}; ${second}` : proxy
  const pairs = networks.map((network) => {
    const [address = '', length = ''] = network.split('/')
    return [address, mask(Number(length))]
  })
  return `// Written by vbox-to-hyperv: only this goes through the guest.
function FindProxyForURL(url, host) {
  var domains = ${JSON.stringify(domains)}
  var networks = ${JSON.stringify(pairs)}
  var name = host.toLowerCase().replace(/\\.$/, '')
  for (var i = 0; i < domains.length; i++) {
    if (name === domains[i] || dnsDomainIs(name, '.' + domains[i])) return ${JSON.stringify(way)}
  }
  if (/^\\d+\\.\\d+\\.\\d+\\.\\d+$/.test(name)) {
    for (var j = 0; j < networks.length; j++) {
      if (isInNet(name, networks[j][0], networks[j][1])) return ${JSON.stringify(way)}
    }
  }
  return 'DIRECT'
}
`
}

function mask(length: number): string {
  return [24, 16, 8, 0].map((shift) => {
    const bits = Math.min(8, Math.max(0, length - (24 - shift)))
    return 256 - 2 ** (8 - bits)
  }).join('.')
}
