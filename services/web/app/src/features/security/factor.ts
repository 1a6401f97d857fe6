/**
 * An SVG document as the address of an image: shown as an image, a document runs no script and loads
 * nothing, whatever is in it. The content policy lets images, and nothing else, be such data.
 */
export function imageOf(svg: string): string {
  const bytes = new TextEncoder().encode(svg);
  return `data:image/svg+xml;base64,${btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""))}`;
}

/** A secret as people type it: in groups of four. Authenticator apps take it with and without the spaces. */
export function inGroups(secret: string): string {
  return secret.replace(/(.{4})(?=.)/g, "$1 ");
}
