/*
 * Restores the selected annotation's bounding box and opens the result beside the slide.
 *
 *     Automate > Script editor > Run, with one annotation selected; MONAI Label with the MoP app must run: make label
 *
 * QuPath reads the region itself, so every format that QuPath opens will do. The result is a PNG in the project's
 * folder "restored" (without a project: beside the slide), named by slide, x, y, width and height in level-0 pixels.
 */
import java.net.http.HttpClient
import java.net.http.HttpRequest
import java.net.http.HttpResponse
import java.nio.file.Files
import java.time.Duration
import javafx.application.Platform
import javax.imageio.ImageIO
import java.awt.image.BufferedImage
import qupath.lib.common.GeneralTools
import qupath.lib.gui.QuPathGUI
import qupath.lib.images.ImageData
import qupath.lib.regions.RegionRequest
import static qupath.lib.scripting.QP.*

String address = "http://127.0.0.1:8000"
String stopAfter = "p_diffusion"   // p_former: the coarse stage alone, faster
double downsample = 1.0            // 2 restores a 40x slide as if it were 20x
long mostPixels = 64L * 1024 * 1024

def server = getCurrentServer()
def annotation = getSelectedObject()
if (server == null || annotation == null || !annotation.hasROI()) {
    println "One annotation must be selected in an open image, none is."
    return
}
if (!server.isRGB()) {
    println "A slide must be 8-bit RGB brightfield, this one is not."
    return
}
def source = GeneralTools.toPath(server.getURIs().iterator().next())
if (source == null && getProject() == null) {
    println "A slide that is no file of this machine must be in a project, none is open."
    return
}
def request = RegionRequest.createInstance(server.getPath(), downsample, annotation.getROI())
if ((request.getWidth() / downsample) * (request.getHeight() / downsample) > mostPixels) {
    println "A region may have up to ${mostPixels} px, this one has ${request.getWidth()} x ${request.getHeight()}."
    return
}

// The server takes 8-bit RGB without alpha.
def region = server.readRegion(request)
def plain = new BufferedImage(region.getWidth(), region.getHeight(), BufferedImage.TYPE_INT_RGB)
def graphics = plain.createGraphics()
graphics.drawImage(region, 0, 0, null)
graphics.dispose()
def png = new ByteArrayOutputStream()
ImageIO.write(plain, "png", png)

String boundary = "mop" + UUID.randomUUID().toString().replace("-", "")
def body = new ByteArrayOutputStream()
body.write(("--${boundary}\r\nContent-Disposition: form-data; name=\"params\"\r\n\r\n{\"stop_after\": \"${stopAfter}\"}\r\n" +
        "--${boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"region.png\"\r\n" +
        "Content-Type: image/png\r\n\r\n").getBytes("UTF-8"))
body.write(png.toByteArray())
body.write("\r\n--${boundary}--\r\n".getBytes("UTF-8"))
def post = HttpRequest.newBuilder(URI.create(address + "/infer/mop?output=image"))
        .timeout(Duration.ofMinutes(30))
        .header("Content-Type", "multipart/form-data; boundary=" + boundary)
        .POST(HttpRequest.BodyPublishers.ofByteArray(body.toByteArray())).build()
// HTTP/1.1: the server does not upgrade to HTTP/2, and would warn of every attempt.
def client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build()
def answer = client.send(post, HttpResponse.BodyHandlers.ofByteArray())
if (answer.statusCode() != 200) {
    println "The server refused with ${answer.statusCode()}: ${new String(answer.body(), 'UTF-8')}"
    return
}

def folder = (getProject() != null ? getProject().getPath().getParent() : source.getParent()).resolve("restored")
Files.createDirectories(folder)
String slide = GeneralTools.stripInvalidFilenameChars(server.getMetadata().getName())
String name = [slide, request.getX(), request.getY(), request.getWidth(), request.getHeight()].join("_")
def result = folder.resolve(name + "_restored.png")
Files.write(result, answer.body())
println "Restored: ${result}"

def restored = new ImageData(buildServer(result.toUri()), getCurrentImageData().getImageType())
Platform.runLater {
    def manager = QuPathGUI.getInstance().getViewerManager()
    def before = new ArrayList(manager.getAllViewers())
    manager.addColumn(manager.getActiveViewer())
    // Not by openImage: with a project open it asks to import the result, and puts it in the slide's place.
    manager.getAllViewers().find { !before.contains(it) }.setImageData(restored)
}
